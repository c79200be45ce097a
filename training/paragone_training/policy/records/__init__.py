"""What a run leaves for people: report, trackers, exports, and who owns the folder."""
