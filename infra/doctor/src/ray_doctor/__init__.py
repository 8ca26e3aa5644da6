"""Examines a Ray cluster and says what to do about what is wrong."""
