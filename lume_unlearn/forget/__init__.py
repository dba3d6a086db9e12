"""`forget`: delete rows from a model in one call, with settings that it finds itself, and judge the result."""
