"""Taxi trips from raw files to features and a distributed XGBoost model, with Ray Data."""
