-- Requests that carry the intercept's header; WRK_MATCH overrides "x-dev: a":
--   WRK_MATCH="x-user: jane" wrk -t1 -c64 -d10s --latency -s benches/wrk/matched.lua http://127.0.0.1:8080/
local here = debug.getinfo(1, "S").source:match("^@(.*/)") or "./"
dofile(here .. "report.lua")
local name, value = (os.getenv("WRK_MATCH") or "x-dev: a"):match("^([^:]+):%s*(.*)$")
wrk.headers[name] = value
