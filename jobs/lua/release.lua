-- Gives a running job back to the queue by its worker's wish.
-- ARGV: prefix, id, attempt, nonce, reason, strike '1' or '0', delay in ms
-- Returns {'ok', hash} or {'stale', why}
local id, attempt, nonce = ARGV[2], ARGV[3], ARGV[4]
local job = load(id)
if repeats(job, attempt, nonce, 'release') then return answer('ok', id) end
if not holds(job, attempt, nonce) then return refuse_stale(job, 'release') end
give_up(job, ARGV[5], 'release', ARGV[6] == '1', tonumber(ARGV[7]))
return answer('ok', id)
