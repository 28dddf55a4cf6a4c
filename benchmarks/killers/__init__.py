"""Shows that each rule of the guard is needed: starts the engine without it and sends the requests it stops."""
