"""An application on Ray Serve."""
