// Questions to begin with. The texts are this project's own; nothing about their answers is written here.

const user = (content) => [{ role: "user", content }];

/** Examples by their titles. Each is meant for a model, of which its hint tells; `otherwise` is the hint where that is not hosted. */
export const EXAMPLES = [
  {
    title: "How long a nap?",
    hint: "preferences in a circle",
    otherwise: "four answers",
    model: "everyday-preferences",
    turns: user("How long should a nap be so that I'm not groggy afterwards?"),
    responses: [
      "Naps are the best! Sleep for an hour to an hour and ten, that is the sweet spot. Cuddle up under a heavy blanket and switch off the alarm, because your body knows exactly when it has had enough. Do it on the sofa with the television on, as late in the evening as you can, and drink hot milk with honey before. If you wake up and the room seems strange and your legs are of lead, that's a sign of how deep and healthy it was. Turn over and add another hour; the groggy feeling will go away during the following night!",
      "Ten to twenty minutes, before three in the afternoon.",
      "Only children and cats need naps. Grown-ups should work.",
      "Ten to twenty minutes. In longer naps you sink into deep sleep, and waking from it is what makes you groggy. Set an alarm for twenty-five minutes, since you need a few to fall asleep, and lie down before three in the afternoon so that the night does not suffer. If you are short of a whole night's sleep and have the time, ninety minutes is the other good length, because it is about one full cycle.",
    ],
  },
  {
    title: "Close the main street?",
    hint: "six arguments",
    otherwise: "six arguments",
    model: "mini-general-preference",
    turns: user("Should the main street be closed to cars? Argue for."),
    responses: [
      "Quieter, safer, cleaner.",
      "Children could walk to school without crossing four lanes, and the cafés could put tables where the cars are parked now.",
      "Every town that has done it says the same: first the shops complain, then they earn more, because people who walk past a window stop and look.",
      "Because I hate cars!!!",
      "The air would be better. The noise would stop. There would be room for trees.",
      "Why should anybody need to drive through the middle of a town in the first place? There is a ring road.",
    ],
  },
  {
    title: "A school garden",
    hint: "ratings and sliders",
    otherwise: "four arguments",
    model: "mini-helpsteer",
    turns: user("Should every school have a garden? Argue for."),
    responses: [
      "A school garden keeps children busy, and they learn to share the work.",
      "Because it is fun.",
      "Biology in a book is dry; biology in a garden is alive. You can measure, count, compare and taste it.",
      "Many children in cities have never seen where food comes from, and a garden of a few square metres is enough to show them. They sow, they wait, they water, they lose half of it to the snails, and what is left they eat with more pride than anything from a shop.",
    ],
  },
  {
    title: "A flat tyre",
    hint: "several turns",
    otherwise: "several turns",
    model: "everyday-preferences",
    turns: [
      { role: "user", content: "My bicycle tyre is flat again." },
      { role: "assistant", content: "Did you look for what went through it?" },
      { role: "user", content: "I found nothing. What now?" },
    ],
    responses: [
      "Run a dry finger around the inside of the tyre, slowly: most thorns are felt and not seen. Then hold the inflated tube under water and watch for bubbles.",
      "Buy a new bicycle.",
      "Oh no, twice in a week! That would annoy anybody. Have a cup of tea first, and then look again with better light.",
    ],
  },
  {
    title: "Decline a wedding",
    hint: "two models disagree",
    otherwise: "four answers",
    model: "mini-bradley-terry",
    second: "everyday-preferences",
    turns: user("I cannot come to my cousin's wedding. How do I say no without hurting her?"),
    responses: [
      "Just don't answer. She will have so many guests that she won't notice, and after the wedding everybody is busy anyway. It saves both of you an unpleasant talk.",
      "Say it early, say it clearly, and add something that is only for her. For example: \"Dear Mira, thank you so much for the invitation. I am sad that I can't be there in June, since I'm away for work that week. I want to see every picture, and I'd love to take the two of you out for dinner in July to hear the whole story.\" No long excuses: they sound like bargaining.",
      "Tell her soon and in person or by phone, give one true reason, and suggest a day to celebrate together.",
      "Weddings are such emotional events, and family is the most important thing that we have. There is no right or wrong here, everyone feels differently about it, and only you can know what is good for you. Listen to your inner voice and you will find the words. Maybe you would like to write down how you feel about it, or sleep on it for some nights, or talk to a friend who knows both of you. Weddings are about love, after all, and love always finds a way of understanding. Whatever you decide in the end, do it with an open heart, and it will be received with an open heart as well.",
    ],
  },
];
