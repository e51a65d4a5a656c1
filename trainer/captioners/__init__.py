"""One file a captioning method."""
