"""What each key uses: counted on the event loop, kept in mapped files that servekit reads."""
