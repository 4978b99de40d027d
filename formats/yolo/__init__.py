"""The YOLO formats: darknet's, and that of Ultralytics."""
