"""Problems whose exact posterior is known, one suite a file; the folder is the registry."""
