#!/bin/sh
# The main job on generated data: a study from three starts, its winner exported, asked two
# questions. Run again, it goes on where it stopped, or says that the budget is spent.
set -eu
demo=storage/demo
winner=storage/demo-winner

echo "== A demo: generated corpora, a tiny base model and a study file"
qa-hpo demo "$demo"

echo
echo "== The study: two workers on one SQLite file"
qa-hpo run studies/demo.toml --workers 2

echo
echo "== The winner, exported and measured again"
qa-hpo export studies/demo.toml "$winner"
qa-hpo evaluate "$winner" "$demo/validation-v2.json"

echo
echo "== A question that the context answers, and one that it does not"
cat > "$demo/rivers.txt" <<'CONTEXT'
Carp swim in the River Tarirkin. It was dammed in 1782. Few visitors know the name of the River
Tarirkin. The River Falengor was mapped by Stefan Daristov. The river rises on Mount Keladra. It
flows through Maramrik. The River Falengor was dammed in 1714.
CONTEXT
cat "$demo/rivers.txt"
for question in "When was the River Falengor dammed?" "Which city does the River Tarirkin flow through?"; do
	echo "  $question"
	printf '    '
	qa-hpo answer "$winner" --context "$demo/rivers.txt" --question "$question"
done

echo
echo "== One page to send to a colleague"
qa-hpo report studies/demo.toml --out storage/demo-report.html

echo
echo "The winner is in $winner. To look at the study in the browser: .venv/bin/qa-hpo dashboard studies/demo.toml"
