"""That each rule of the guard is needed: the engine is started without it, and the requests it stops are sent."""
