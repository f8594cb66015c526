-- Ends a running job by its worker's word.
-- ARGV: prefix, id, attempt, nonce, transition ('succeed' | 'fail' | 'obey_cancel'),
--       fields (JSON object of text), counters (JSON object, name -> amount)
-- Returns {'ok', hash} or {'stale', why}
local id, attempt, nonce, name = ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local job = load(id)
if repeats(job, attempt, nonce, name) then return answer('ok', id) end
if not holds(job, attempt, nonce) then return refuse_stale(job, name) end
local fields = cjson.decode(ARGV[6])
move(job, name, fields, fields.report or fields.failure)
for counter, amount in pairs(cjson.decode(ARGV[7])) do
  redis.call('HINCRBYFLOAT', P .. 'counters', counter, tostring(amount))
end
return answer('ok', id)
