-- One line of JSON at the end of a wrk run, for scripts; people read wrk's own summary above it.
function done(summary, latency, requests)
  local failed = summary.errors.connect + summary.errors.read + summary.errors.write + summary.errors.timeout
  io.write(string.format('JSON {"units": %d, "secs": %.6f, "errors": %d, "p50_us": %.1f, "p99_us": %.1f}\n',
    summary.requests, summary.duration / 1e6, failed + summary.errors.status,
    latency:percentile(50), latency:percentile(99)))
end
