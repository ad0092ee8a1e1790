"""`make demo`: train on OpenMoji scenes, and compare with a baseline."""
