"""What the driver records: runs in MLflow, plots, the report and the registered model."""
