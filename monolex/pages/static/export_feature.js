"use strict";
// The page of the feature that the address names (#DICTIONARY/NUMBER): markup that was drawn when the export was made.
follow(async (said, latest) => {
  const place = said.match(/^([0-9a-f]{12})\/([0-9]{1,9})$/);
  if (!place) return;
  const [, key, number] = place;
  const shown = (await shard(`feature/${key}/${Math.floor(number / facts.together)}`))[number];
  if (!shown) throw new Error(`feature ${number} is not in this export`);
  if (!latest()) return;
  document.title = `${shown.title} · monolex`;
  main.innerHTML = shown.html;
  scrollTo(0, 0);
});
