"""What every command needs: configuration, command line, run folders, storage, parallel jobs."""
