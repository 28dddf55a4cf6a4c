"""HTTP below and around the gate: limits of heads and slow readers, HTTP/1.0, and pages of other origins."""
