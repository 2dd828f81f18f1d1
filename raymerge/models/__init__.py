"""Encoders and the objectives that train them. Plain torch; nothing here knows about Ray, MLflow or files."""
