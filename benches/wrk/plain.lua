-- Requests that no intercept matches:
--   wrk -t1 -c64 -d10s --latency -s benches/wrk/plain.lua http://127.0.0.1:8080/
local here = debug.getinfo(1, "S").source:match("^@(.*/)") or "./"
dofile(here .. "report.lua")
wrk.headers["User-Agent"] = "wrk"
