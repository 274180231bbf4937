-- KEYS[1]: the partition's owner. ARGV[1]: a version byte, the term in 8 bytes (big-endian), the address. ARGV[2]: milliseconds to live.
-- Terms are compared byte by byte: as numbers they would not be exact.
local known = redis.call('GET', KEYS[1])
if known and #known >= 9 and string.byte(known, 1) == string.byte(ARGV[1], 1) then
  for i = 2, 9 do
    local old, new = string.byte(known, i), string.byte(ARGV[1], i)
    if old > new then
      return 0
    elseif old < new then
      break
    end
  end
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
