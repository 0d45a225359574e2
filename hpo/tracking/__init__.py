"""Trackers: a study as experiment and each trial as run in MLflow, TensorBoard, Weights & Biases or Trackio."""
