"""What is kept about usage: the books (SQLite), the request log, the audit log. Written behind the answers."""
