"""Cohorts: groups that form at the server, one request a member, and are answered when they are whole."""
