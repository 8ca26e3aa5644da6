"""Keras 3 trained on several workers with TensorFlow and Ray Train."""
