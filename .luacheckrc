std = "lua51"
max_line_length = 120
read_globals = { "redis", "KEYS", "ARGV" }
-- A verb's file uses and changes what its includes define, and a library's file defines what others use; a block may
-- hold an include alone. A test checks each script whole, where none of these is ignored.
files["lua"] = { ignore = { "112", "113", "211", "542" } }
