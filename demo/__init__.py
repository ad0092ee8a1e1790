"""`make demo`: the main job from nothing, and a picture of what it learned."""
