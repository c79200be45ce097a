"""Drawing responses: in this process or from completions servers."""
