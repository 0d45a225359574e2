"""Tasks: the losses that members train on, the metrics of their outputs, and the task of a study, which has both."""
