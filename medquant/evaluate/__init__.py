"""Scores of predicted masks against truth, their intervals, and what a trained network costs in bytes."""
