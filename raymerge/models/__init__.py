"""Encoders and the objectives that train them. Plain torch; nothing here knows Ray, MLflow or files."""
