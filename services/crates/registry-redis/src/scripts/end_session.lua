-- KEYS[1]: the session. ARGV[1]: milliseconds for which its end is told. A longer time already there stands.
if redis.call('PTTL', KEYS[1]) < tonumber(ARGV[1]) then
  redis.call('SET', KEYS[1], '', 'PX', ARGV[1])
end
return 1
