-- Uploads of 1 MiB:
--   wrk -t1 -c8 -d10s --latency -s benches/wrk/upload.lua http://127.0.0.1:8080/
local here = debug.getinfo(1, "S").source:match("^@(.*/)") or "./"
dofile(here .. "report.lua")
wrk.method = "POST"
wrk.body = string.rep("0123456789abcdef", 65536)
