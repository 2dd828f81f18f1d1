"""What the driver records: runs in MLflow, plots, the report, the registered model."""
