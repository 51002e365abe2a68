-- One request in WRK_EVERY (10 when unset) carries the intercept's header, on the same connections as the others:
--   WRK_EVERY=4 wrk -t1 -c64 -d10s --latency -s benches/wrk/mixed.lua http://127.0.0.1:8080/
local here = debug.getinfo(1, "S").source:match("^@(.*/)") or "./"
dofile(here .. "report.lua")
local name, value = (os.getenv("WRK_MATCH") or "x-dev: a"):match("^([^:]+):%s*(.*)$")
local every = tonumber(os.getenv("WRK_EVERY") or "10")
local count, plain, matched = 0, nil, nil
function request()
  if not plain then
    plain = wrk.format("GET")
    matched = wrk.format("GET", nil, { [name] = value, ["Host"] = wrk.headers["Host"] })
  end
  count = count + 1
  return count % every == 0 and matched or plain
end
