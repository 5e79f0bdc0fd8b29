std = "lua51"
max_line_length = 120
read_globals = { "redis", "KEYS", "ARGV" }
-- A verb's file uses what its includes define, and a library's file defines what others use; a test checks each
-- script whole, where neither is ignored.
files["lua"] = { ignore = { "113", "211" } }
