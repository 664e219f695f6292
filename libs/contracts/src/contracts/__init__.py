"""What crosses a process border: subjects, messages, money, ids, error codes."""
