-- Requests with the headers real ones carry (about 900 bytes), none of which matches:
--   wrk -t1 -c64 -d10s --latency -s benches/wrk/browser.lua http://127.0.0.1:8080/
local here = debug.getinfo(1, "S").source:match("^@(.*/)") or "./"
dofile(here .. "report.lua")
for name, value in pairs({
  ["User-Agent"] = "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0",
  ["Accept"] = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8",
  ["Accept-Language"] = "en-US,en;q=0.5",
  ["Accept-Encoding"] = "gzip, deflate, br, zstd",
  ["Cookie"] = "sid=" .. string.rep("9f3c", 40) .. "; theme=dark; consent=yes",
  ["Authorization"] = "Bearer " .. string.rep("eyJhbGci", 30),
  ["Referer"] = "https://shop.test/catalogue?page=4&sort=name",
  ["X-Request-Id"] = "0af7651916cd43dd8448eb211c80319c",
  ["Traceparent"] = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
  ["X-Dev"] = "nobody",
}) do
  wrk.headers[name] = value
end
