"""Stages of training: what one step of each does. base.py holds their contract."""
