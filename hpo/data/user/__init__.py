"""User data: arrays of an .npz file or a Python function, folders of images, tables."""
