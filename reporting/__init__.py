"""What a person looks at: training logs, curves, tables, images and reports."""
