"""The command `lume-unlearn`: each command's file has its options and the few lines that call the library."""
