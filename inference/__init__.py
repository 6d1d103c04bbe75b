"""Network to soft mask to segmentation to metrics."""
