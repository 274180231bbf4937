-- KEYS[1]: the bucket. ARGV: burst, tokens per second, cost, the longest time to live in milliseconds.
-- Answers 0 for granted, else the microseconds after which to ask again.
-- Tokens are counted in millionths, so a token a second is a millionth a microsecond. All numbers that matter stay below 2^53.
local clock = redis.call('TIME')
local now = tonumber(clock[1]) * 1000000 + tonumber(clock[2])
local full = tonumber(ARGV[1]) * 1000000
local rate = tonumber(ARGV[2])
local cost = tonumber(ARGV[3]) * 1000000
local tokens = full
local known = redis.call('GET', KEYS[1])
if known then
  local held, at = string.match(known, '^(%d+) (%d+)$')
  if held then
    -- The server's clock may have been set back.
    tokens = math.min(tonumber(held) + math.max(now - tonumber(at), 0) * rate, full)
  end
end
local per = math.max(rate, 1)
local answer = 0
if cost <= tokens then
  tokens = tokens - cost
else
  -- What never fits is worth asking for again when the bucket could be full.
  answer = math.max(math.ceil((math.min(cost, full) - tokens) / per), 1)
end
-- A full bucket need not be remembered.
local ttl = math.min(math.max(math.ceil((full - tokens) / per / 1000), 1), tonumber(ARGV[4]))
redis.call('SET', KEYS[1], string.format('%.0f %.0f', tokens, now), 'PX', string.format('%.0f', ttl))
return answer
