"""From downloads, or from nothing (phantom), to data sets."""
