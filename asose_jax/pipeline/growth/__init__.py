"""Growth of a network during the search: when, where and how."""
