"""`servekit tune`: starts a few profiles one after the other, measures each under the same loads, and compares them."""
