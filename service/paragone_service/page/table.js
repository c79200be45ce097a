// What follows from a K×K table of probabilities: who beats whom, the order of groups that run in circles, and the
// table itself from numbers of single responses. `null` stands where the service has no answer.

/** Return the probability that belongs to log-odds. */
export function probability(logit) {
  const larger = 1 / (1 + Math.exp(-Math.abs(logit)));
  return logit >= 0 ? larger : 1 - larger;
}

/** Return the table of responses that have one number each. */
export function tableOf(rewards, temperature) {
  return rewards.map((first) => rewards.map((second) => probability((first - second) / temperature)));
}

/** Return the table of representations that hold a reward and then a vector, which turns the reward's order by its
 * skew form: v[0]·w[1] − v[1]·w[0] of each pair of numbers, summed. */
export function skewTable(representations, temperature, skewWeight) {
  const form = (v, w) => {
    let sum = 0;
    for (let at = 1; at + 1 < v.length; at += 2) sum += v[at] * w[at + 1] - v[at + 1] * w[at];
    return sum;
  };
  return representations.map((v) =>
    representations.map((w) => probability((v[0] - w[0] + skewWeight * form(v, w)) / temperature)),
  );
}

/** Return what a tournament's answer holds, of a table that was computed here. `nash` is known without a solver where
 * each response has one number: the best ones share it. */
export function tournamentOf(matrix, rewards = null) {
  const rates = winRates(matrix);
  const wins = (i) => matrix[i].filter((one, j) => i !== j && one > 0.5).length;
  const losses = (i) => matrix[i].filter((one, j) => i !== j && one < 0.5).length;
  const winner = matrix.findIndex((_, i) => wins(i) === matrix.length - 1);
  const best = rewards && Math.max(...rewards);
  const shared = rewards?.filter((one) => one === best).length;
  return {
    matrix,
    win_rates: rates,
    ranking: ranked(rates),
    condorcet_winner: winner < 0 ? null : winner,
    copeland: matrix.map((_, i) => wins(i) - losses(i)),
    nash: rewards ? rewards.map((one) => (one === best ? 1 / shared : 0)) : matrix.map(() => null),
  };
}

/** Return each response's mean probability over the group, itself counted as ½; null where it has none. */
export function winRates(table) {
  return table.map((row) => {
    const known = row.filter((one) => one !== null);
    return known.length ? known.reduce((sum, one) => sum + one, 0) / known.length : null;
  });
}

/** Return the indices that have a number, the highest first; of equal ones the lower index first. */
export function ranked(rates) {
  const known = rates.map((rate, index) => ({ rate, index })).filter(({ rate }) => rate !== null);
  return known.sort((a, b) => b.rate - a.rate || a.index - b.index).map(({ index }) => index);
}

/** Return the responses in groups, best first. Whoever is in an earlier group beats all of every later one; inside a
 * group of several, wins run in circles, or there are ties. (The strong components of "beats or ties".) */
export function groupsOf(table) {
  const known = table.map((_, index) => index).filter((index) => table[index][index] !== null);
  const holds = (i, j) => (table[i][j] ?? 0.5) >= 0.5;
  // Whom each reaches by a chain of wins and ties. Whoever reaches another and is reached by it is in its group.
  const reaches = new Map(known.map((i) => [i, new Set(known.filter((j) => holds(i, j)))]));
  for (const middle of known) {
    for (const i of known) if (reaches.get(i).has(middle)) for (const j of reaches.get(middle)) reaches.get(i).add(j);
  }
  const groups = new Map();
  for (const i of known) {
    const group = known.filter((j) => reaches.get(i).has(j) && reaches.get(j).has(i));
    groups.set(group.join(), group);
  }
  return [...groups.values()].sort((a, b) => reaches.get(b[0]).size - reaches.get(a[0]).size);
}

/** Return a group's members so that each beats (or ties) the next one, and the last the first. */
export function ringOf(group, table) {
  if (group.length < 3) return group;
  const holds = (i, j) => (table[i][j] ?? 0.5) >= 0.5;
  let ring = firstTriangle(group, holds);
  while (ring.length < group.length) {
    const outside = group.filter((one) => !ring.includes(one));
    ring = withOne(ring, outside, holds) ?? withTwo(ring, outside, holds);
  }
  return ring;
}

function firstTriangle(group, holds) {
  for (const a of group) {
    for (const b of group) {
      for (const c of group) {
        if (a !== b && b !== c && a !== c && holds(a, b) && holds(b, c) && holds(c, a)) return [a, b, c];
      }
    }
  }
  return group; // it has no circle, so it is no group of `groupsOf`
}

// Somebody between two neighbours, who loses to the one and beats the other.
function withOne(ring, outside, holds) {
  for (const one of outside) {
    const place = ring.findIndex((member, at) => holds(member, one) && holds(one, ring[(at + 1) % ring.length]));
    if (place >= 0) return [...ring.slice(0, place + 1), one, ...ring.slice(place + 1)];
  }
  return null;
}

// Where nobody stands between two neighbours, each outsider beats the whole ring or loses to it; then two together do.
function withTwo(ring, outside, holds) {
  for (const loser of outside.filter((one) => holds(ring[0], one))) {
    for (const winner of outside) {
      if (winner !== loser && holds(loser, winner) && holds(winner, ring[0])) return [...ring, loser, winner];
    }
  }
  return [...ring, ...outside];
}
