"""The commands of the scripts: their verbs, one function each, and their options."""
