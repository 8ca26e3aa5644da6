"""What holds across the projects."""
